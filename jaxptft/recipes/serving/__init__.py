"""A fine-tuned model behind HTTP: the rows of many requests answered together, in few compiled shapes."""
