"""What a trained model is worth: figures, predictions, intervals. Knows no training."""
