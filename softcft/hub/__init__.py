"""Trained models on the Hub: what their card says, and how they get there."""
