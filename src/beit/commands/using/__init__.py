"""What is done with a finished model: measuring, predicting, probing, taking it up in Python."""
