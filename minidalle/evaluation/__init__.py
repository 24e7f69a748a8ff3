"""Mesurer ce que les modèles font vraiment."""
