"""The differentiable core: abduction, action and prediction for images."""
