"""What Crystal is measured with: `code/` scores a model's programs between the stages."""
