"""From files of documents to batches of rows: readers, tokenizer, packing, shards, mixture, loader. No torch."""
