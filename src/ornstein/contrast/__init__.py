"""The models that diffusion is compared with: GANs that lose modes, autoregression that takes N evaluations (E34, E35).

`ornstein.contrast.run.contrast` trains and scores them on one thread each for equal processor time;
`ornstein.contrast.settings.Contrast` are its settings, those of `ornstein contrast`.
"""

__all__: list[str] = []
