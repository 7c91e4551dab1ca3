"""Figures: images, points in the plane, image-plane score fields."""
