"""What the files of a tokenizer mean together, as `transformers.AutoTokenizer` takes them."""
