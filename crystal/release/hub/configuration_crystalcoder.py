"""Configuration of CrystalCoder for transformers, with the keys of the published one.

`rotary_base` and `residual_scale` are additions, for models that Crystal trained otherwise.
"""

from transformers import PretrainedConfig


class CrystalCoderConfig(PretrainedConfig):
    model_type = "crystalcoder"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size=32032,
        n_positions=2048,
        n_embd=4096,
        n_layer=32,
        n_head=32,
        n_inner=10922,
        rotary_dim=32,
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        mup_embeddings_scale=14.6,
        mup_output_alpha=2.22,
        mup_width_scale=0.0625,
        mup_scale_qk_dot_by_d=True,
        rotary_base=10000.0,
        residual_scale=1.0,
        use_cache=True,
        bos_token_id=2,
        eos_token_id=2,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_inner = n_inner
        self.rotary_dim = rotary_dim
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.mup_embeddings_scale = mup_embeddings_scale
        self.mup_output_alpha = mup_output_alpha
        self.mup_width_scale = mup_width_scale
        self.mup_scale_qk_dot_by_d = mup_scale_qk_dot_by_d
        self.rotary_base = rotary_base
        self.residual_scale = residual_scale
        self.use_cache = use_cache
        super().__init__(bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)
