"""Neural mechanisms: attributes, images, and the classifiers that read attributes off images."""
