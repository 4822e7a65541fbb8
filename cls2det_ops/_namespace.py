"""The name of torch.ops under which the libraries beside this file register their operators.

Only a kernel of the Hugging Face hub has another one, which tests/hub_layout.py writes here.
"""

NAMESPACE = "cls2det"
