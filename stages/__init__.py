"""What CrystalCoder did: its three stages as recipes, the curriculum that chains them, its published numbers."""
