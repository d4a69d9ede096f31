"""Other methods of unlearning, one a file, behind the one interface of `method`."""
