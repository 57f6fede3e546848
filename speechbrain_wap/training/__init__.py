"""What a training of either stage needs, and the engine of all folds."""
