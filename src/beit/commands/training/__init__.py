"""The four trainings: tokenizer and pre-training, classification, segmentation."""
