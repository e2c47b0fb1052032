"""Crystal's checkpoints and the files of other programs, both ways.

layout  names, shapes and configuration keys of the published CrystalCoder layout: a table, read both ways
fold    the mathematics that turns a Crystal model into a stock StableLM of exactly the same logits
shards  tensors in files: read one shard at a time, write one tensor at a time
hf      import_checkpoint, export_crystalcoder, export_stock: Hugging Face folders, weights only
convert import_checkpoint, export_checkpoint: the Cerebras SDK's .mdl and safetensors, with the optimizer
hub/    the modelling code that goes into an export for transformers to run; nothing here imports it
"""
