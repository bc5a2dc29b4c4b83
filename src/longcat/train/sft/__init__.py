"""Supervised fine-tuning on conversations: reading, packing, masks, held-out figures."""
