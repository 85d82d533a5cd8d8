"""How good predictions are: arrays or spans in, numbers and a `Report` out."""
