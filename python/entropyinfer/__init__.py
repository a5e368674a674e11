"""Long-context LLM inference that spends attention where attention entropy says it matters.

`Engine` runs a checkpoint. `entropyinfer.ops` has the engine's kernels on torch tensors, `entropyinfer.reference` the
same in plain PyTorch, and `import entropyinfer.transformers` makes them an attention of Hugging Face's models.
"""
from entropyinfer._core import Error, Generation, KvStats, ModelInfo, Policy, Sparsity, Timings, cuda_available
from entropyinfer._engine import Engine, Profile, Score
from entropyinfer._policy import Reading, policy

__version__ = '0.1.0'
__all__ = ['Engine', 'Error', 'Generation', 'KvStats', 'ModelInfo', 'Policy', 'Profile', 'Reading', 'Score', 'Sparsity', 'Timings',
           'cuda_available', 'policy']
