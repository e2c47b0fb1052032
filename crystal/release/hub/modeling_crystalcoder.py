"""CrystalCoder for transformers 4.48 and newer: pre-LayerNorm, partial rotary, SwiGLU with biases, tied embeddings, muP multipliers.

Shapes: B batch, T new tokens, S all tokens, D model, H heads, K head dim, R rotary pairs, V vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D

from .configuration_crystalcoder import CrystalCoderConfig


def rotate(x_BTHK, cos_BT1R, sin_BT1R):
    """Turn the first 2R dims of every head in pairs (0,1), (2,3), ..., in float32."""
    dims = 2 * cos_BT1R.shape[-1]
    even, odd = x_BTHK[..., :dims].float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos_BT1R - odd * sin_BT1R, odd * cos_BT1R + even * sin_BT1R), dim=-1).flatten(-2)
    return torch.cat((turned.to(x_BTHK.dtype), x_BTHK[..., dims:]), dim=-1)


class CrystalCoderAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx, self.n_head = layer_idx, config.n_head
        head_dim = config.n_embd // config.n_head
        self.scale = 1 / head_dim if config.mup_scale_qk_dot_by_d else head_dim**-0.5
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x_BTD, cos, sin, mask_B1TS, cache):
        q, k, v = (part.unflatten(-1, (self.n_head, -1)) for part in self.c_attn(x_BTD).chunk(3, dim=-1))
        q, k, v = rotate(q, cos, sin).transpose(1, 2), rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        y_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1TS, scale=self.scale)
        return self.c_proj(y_BHTK.transpose(1, 2).flatten(-2))


class CrystalCoderMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc2 = Conv1D(config.n_inner, config.n_embd)  # the gate
        self.c_fc = Conv1D(config.n_inner, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_inner)

    def forward(self, x_BTD):
        return self.c_proj(F.silu(self.c_fc2(x_BTD)) * self.c_fc(x_BTD))


class CrystalCoderBlock(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.residual_scale = config.residual_scale
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CrystalCoderAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = CrystalCoderMLP(config)

    def forward(self, x_BTD, cos, sin, mask_B1TS, cache):
        x_BTD = torch.add(x_BTD, self.attn(self.ln_1(x_BTD), cos, sin, mask_B1TS, cache), alpha=self.residual_scale)
        return torch.add(x_BTD, self.mlp(self.ln_2(x_BTD)), alpha=self.residual_scale)


class CrystalCoderPreTrainedModel(PreTrainedModel):
    config_class = CrystalCoderConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["CrystalCoderBlock"]
    _skip_keys_device_placement = "past_key_values"
    _supports_sdpa = True
    _supports_cache_class = True

    def _init_weights(self, module):
        if isinstance(module, (Conv1D, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


class CrystalCoderModel(CrystalCoderPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(CrystalCoderBlock(config, i) for i in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, value):
        self.wte = value

    def angles(self, position_ids):
        """cos and sin (B, T, 1, R), float32: in half precision the positions themselves would be rounded."""
        dims, dtype = self.config.rotary_dim, torch.float32 if position_ids.device.type == "mps" else torch.float64
        exponents = torch.arange(0, dims, 2, dtype=dtype, device=position_ids.device) / dims
        angles = position_ids[:, :, None, None].to(dtype) * self.config.rotary_base**-exponents
        return angles.cos().float(), angles.sin().float()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_hidden_states=None,
        **kwargs,
    ):
        """Final hidden states (B, T, D); positions count from the cache's length unless they are given."""
        x_BTD = (self.wte(input_ids) if inputs_embeds is None else inputs_embeds) * self.config.mup_embeddings_scale
        if (self.config.use_cache if use_cache is None else use_cache) and past_key_values is None:
            past_key_values = DynamicCache()
        past, new = 0 if past_key_values is None else past_key_values.get_seq_length(), x_BTD.shape[1]
        steps = torch.arange(past + new, device=x_BTD.device)
        if position_ids is None:
            position_ids = steps[None, past:]
        mask = seen(steps, past, attention_mask)
        cos, sin = self.angles(position_ids)
        states = [x_BTD]
        for block in self.h:
            x_BTD = block(x_BTD, cos, sin, mask, past_key_values)
            states.append(x_BTD)
        x_BTD = self.ln_f(x_BTD)
        states[-1] = x_BTD
        return BaseModelOutputWithPast(
            last_hidden_state=x_BTD,
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
        )


def seen(steps_S, past, attention_mask):
    """(B or 1, 1, T, S): which tokens each new token sees: those before it that are no padding, and itself."""
    new_T1 = steps_S[past:, None]
    mask = (steps_S <= new_T1)[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None].bool() | (steps_S == new_T1)
    return mask


class CrystalCoderLMHeadModel(CrystalCoderPreTrainedModel, GenerationMixin):
    # The output table is the input table, used a second time; published files hold it twice.
    _keys_to_ignore_on_load_unexpected = [r"lm_head\.weight"]

    def __init__(self, config):
        super().__init__(config)
        self.transformer = CrystalCoderModel(config)
        self.logits_scale = config.mup_output_alpha * config.mup_width_scale
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer.wte

    def set_input_embeddings(self, value):
        self.transformer.wte = value

    def get_output_embeddings(self):
        return None

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        logits_to_keep=0,
        num_items_in_batch=None,
        **kwargs,
    ):
        hidden = self.transformer(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, output_hidden_states)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = F.linear(hidden.last_hidden_state[:, kept], self.transformer.wte.weight) * self.logits_scale
        loss = None
        if labels is not None:
            loss = ForCausalLMLoss(logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=hidden.past_key_values,
            hidden_states=hidden.hidden_states,
        )
