"""Opening checkpoints nobody trusts: sniff, copy privately while hashing, check the header, and only then load."""

from audit_cli.checkpoint.header import TensorInfo
from audit_cli.checkpoint.hub import Located, Origin, locate
from audit_cli.checkpoint.opened import Checkpoint, manifest, open_checkpoint

__all__ = ["Checkpoint", "Located", "Origin", "TensorInfo", "locate", "manifest", "open_checkpoint"]
