"""The study of positional interpolation: which answer to "any resolution" holds, on three networks (`make study`)."""
