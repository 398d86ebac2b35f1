"""What the TopK architectures share: selection by pre-activation, sparse decoding, auxiliary loss, export.

Formulas of SAELens. Selection is by `scores`: pre-activations, times decoder norms where `rescale_acts_by_decoder_norm`.
SAELens' latents carry the norm too and its decoder divides by it; here latents are the plain pre-activations, which gives the
same reconstruction and the same gradients (the norm cancels) for less work. The norm is folded in on export.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_core.config.base import Fraction, require
from sae_core.config.run import ArchitectureConfig
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.functional import error_of_few, mse
from sae_core.sae.loss import LossContext, LossTerms, StepMemory
from sae_core.sparse.active import ActiveLatents, topk_per_batch, topk_per_token
from sae_core.sparse.kernels.choice import sparse_is_faster
from sae_core.sparse.pre_acts import SparsePreActs, encoder_products, pre_acts_at, sparse_decode

HINT_FACTOR = 0.9
"""Scores above this fraction of the previous batch's threshold are looked at first. A matter of speed only."""
FEW_WEIGHTS = 2**13
"""Decoder weights of dead latents up to which `error_of_few` is used: products so small gain nothing by bfloat16."""


class CountedConfig(ArchitectureConfig):
    """Fields of every architecture that counts its latents: `k` is the L0, and no coefficient decides it."""

    sparsity_parameter: ClassVar[str] = "k"
    has_coefficient: ClassVar[bool] = False

    @model_validator(mode="after")
    def _target_is_k(self) -> Self:
        k, target = self.sparsity_value, self.target_l0
        rule = "`target_l0` must equal `k`, which is the L0 of this architecture"
        require(target in (None, k), f"{rule}, but got target_l0={target or 0:g} and k={k:g}. Give one of them.")
        return self

    @property
    def controls_l0(self) -> bool:
        """k is the L0: there is nothing to adjust."""
        return False

    @classmethod
    def aimed_at(cls, target_l0: float, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"target_l0": target_l0, "k": int(target_l0) if target_l0 == int(target_l0) else target_l0}

    @classmethod
    def example(cls, d_in: int, d_sae: int) -> Self:
        return cls.model_validate({"d_sae": d_sae, "k": max(1, d_sae // 8)})


class TopKFamilyConfig(CountedConfig):
    """Fields of every architecture that keeps the largest pre-activations."""

    rescale_acts_by_decoder_norm: bool = True
    """Select by pre-activation times decoder norm, so that a latent cannot win by a large encoder and a small decoder."""
    auxk_coefficient: Annotated[float, Field(ge=0)] = 1.0
    """Multiplies the auxiliary loss of dead latents. SAELens: 1. Gao et al.: 1/32, over a loss normalised by the residual's variance."""

    k_start: Annotated[float, Field(gt=0)] | None = None
    """Active latents per token at the start of training, from where the number goes to `k`; None: `k` all along."""
    k_schedule: Literal["linear", "exponential"] = "linear"
    """How it goes there: by equal differences, or by equal ratios."""
    k_anneal: Fraction = 0.2
    """Fraction of the steps over which it goes there."""
    k_cold_start: Fraction = 0.0
    """Fraction of the steps, before that, during which it stays at `k_start`."""

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        k = self.sparsity_value
        require(k <= self.d_sae, f"`k` must satisfy 0 < k <= d_sae, but got k={k:g} and d_sae={self.d_sae}. Lower `k` or raise `d_sae`.")
        return self

    @model_validator(mode="after")
    def _k_schedule_holds(self) -> Self:
        k_start, k, end = self.k_start, self.sparsity_value, self.k_cold_start + self.k_anneal
        if k_start is None:
            given = self.changed("k_schedule", "k_anneal", "k_cold_start")
            shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
            require(not given, f"the schedule of k must come with `k_start`, but got {shown} alone. Set `k_start`, or leave it out.")
            return self
        require(
            k_start != k and k_start <= self.d_sae,
            f"`k_start` must satisfy 0 < k_start <= d_sae and differ from k, but got k_start={k_start:g}, k={k:g} and "
            f"d_sae={self.d_sae}. Choose another, or leave it out.",
        )
        require(
            0 < end <= 1,
            f"`k_anneal` + `k_cold_start` must be above 0 and at most 1 (fractions of the steps), but got {self.k_anneal} + "
            f"{self.k_cold_start}. Change one, or leave out `k_start`.",
        )
        return self

    def k_at(self, progress: float) -> float:
        """Active latents per token when a fraction `progress` of the run has passed: `k_start`, then on the way, then exactly `k`."""
        k = self.sparsity_value
        if self.k_start is None or progress >= self.k_cold_start + self.k_anneal:
            return k
        if progress <= self.k_cold_start:
            return self.k_start
        way = (progress - self.k_cold_start) / self.k_anneal
        return self.k_start + (k - self.k_start) * way if self.k_schedule == "linear" else self.k_start * (k / self.k_start) ** way

    @property
    def schedule_end(self) -> float:
        """Where `k` is reached."""
        return 0.0 if self.k_start is None else self.k_cold_start + self.k_anneal


class TopKFamily(SparseAutoencoder):
    """Abstract: a concrete class says which entries `select` keeps, and how `encode` works at inference."""

    config: TopKFamilyConfig
    selection_memory: ClassVar[tuple[float, float]] = (8.0, 8.0)
    """`latents` and `latents_in_bfloat16` of `StepMemory`: what the selection needs."""

    def __init__(self, config: TopKFamilyConfig, d_in: int, d_out: int | None = None, *, generator: torch.Generator | None = None) -> None:
        super().__init__(config, d_in, d_out, generator=generator)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    @abstractmethod
    def select(self, products: Float[Tensor, "B d_sae"], k: float) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        """The latents kept in training, chosen by score, about k a token, and their pre-activations. Without gradient.

        Args:
            products: pre-activations without b_enc.
        """

    @classmethod
    def step_memory(cls, config: Any, d_in: int) -> StepMemory:
        latents, in_bfloat16 = cls.selection_memory
        auxiliary = config.auxk_coefficient > 0  # copies of the dead latents' weights, and the gradients of those
        listed = max(config.sparsity_value, config.k_start or 0) + (d_in / 2 if auxiliary else 0)
        return StepMemory(latents, in_bfloat16, inputs=2.0, weights=2.0 if auxiliary else 1.0, listed_latents=listed)

    def activate(self, values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Latents of the pre-activations that are kept."""
        return values.relu()

    def best(
        self, products: Float[Tensor, "B n"], bias: Float[Tensor, " n"], factors: Float[Tensor, " n"], k: int
    ) -> tuple[ActiveLatents, Float[Tensor, " N"]]:
        """The k latents of every token that the auxiliary loss takes first, of n given ones, and their pre-activations."""
        return topk_per_token(products, bias, factors, k)

    def products(self, x: Float[Tensor, "B d_in"]) -> Float[Tensor, "B d_sae"]:
        """Pre-activations without b_enc."""
        return encoder_products(x, self.input_bias, self.W_enc)

    def score_factors(self) -> Float[Tensor, " d_sae"]:
        """Score / pre-activation of each latent. Without gradient."""
        return self.decoder_norms().detach() if self.config.rescale_acts_by_decoder_norm else torch.ones_like(self.b_enc)

    def reconstruction_terms(
        self, pre_acts: SparsePreActs, latents: Float[Tensor, " N"], offset: Float[Tensor, "*B d_out"], target: Float[Tensor, "B d_out"]
    ) -> tuple[Float[Tensor, "B d_out"], dict[str, Tensor]]:
        """The reconstruction from all latents, and the reconstruction terms of the loss.

        Args:
            offset: what is reconstructed without latents.
            target: what is to be reconstructed.
        """
        x_hat = pre_acts.decode(latents, self.W_dec) + offset
        return x_hat, {"mse_loss": mse(x_hat, target)}

    def loss(self, x: Float[Tensor, "B d_in"], ctx: LossContext) -> LossTerms:
        with torch.no_grad():
            active, values = self.select(self.products(x), self.config.k_at(ctx.progress))
        pre_acts = SparsePreActs(pre_acts_at(active, values, x, self.input_bias, self.W_enc, self.b_enc), active)
        latents = self.activate(pre_acts.values)
        target = ctx.target_of(x)
        x_hat, terms = self.reconstruction_terms(pre_acts, latents, self.output_offset(x), target)
        if ctx.dead is not None and self.config.auxk_coefficient > 0:
            terms["auxiliary_reconstruction_loss"] = self.config.auxk_coefficient * self.auxk_loss(x, (target - x_hat).detach(), ctx.dead)
        return LossTerms.of(terms, latents, pre_acts)

    def auxk_loss(self, x: Float[Tensor, "B d_in"], residual: Float[Tensor, "B d_out"], dead: Bool[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        """Reconstruct the residual with the k_aux = d_out / 2 (d_in / 2, for an SAE) dead latents of largest score, per token.

        min(n_dead / k_aux, 1) * mean_b ||e_hat - e||^2, with e_hat decoded without b_dec and no ReLU on the dead pre-activations.

        Paper: Gao et al. 2024, arXiv:2406.04093, appendix A.2. Differs from it: the error is not divided by the variance of the
        residual (SAELens' form), and scaled down when fewer than k_aux latents are dead.
        """
        which = dead.nonzero().squeeze(1)
        n_dead, k_aux = len(which), max(self.W_dec.shape[1] // 2, 1)
        if n_dead <= k_aux and n_dead * max(self.sizes) <= FEW_WEIGHTS and sparse_is_faster(x):
            error = error_of_few(x, residual, self.input_bias, self.W_enc, self.b_enc, self.W_dec, which)
            return error * (n_dead / k_aux / len(x))
        W_enc, b_enc, W_dec = self.W_enc.T.index_select(0, which).T, self.b_enc.index_select(0, which), self.W_dec.index_select(0, which)
        products = encoder_products(x, self.input_bias, W_enc)
        if n_dead <= k_aux:
            e_hat = (products + b_enc) @ W_dec
        else:
            active, values = self.best(products, b_enc, self.score_factors().index_select(0, which), k_aux)
            e_hat = sparse_decode(pre_acts_at(active, values, x, self.input_bias, W_enc, b_enc), W_dec, active)
        return min(n_dead / k_aux, 1.0) * mse(e_hat, residual)

    def select_in_batch(
        self, products: Float[Tensor, "B d_sae"], k: float, hint: Float[Tensor, ""]
    ) -> tuple[ActiveLatents, Float[Tensor, " N"], Float[Tensor, ""]]:
        """The k * B latents of largest score in the batch, their pre-activations, and the smallest of their scores."""
        n = max(1, int(k * len(products)))
        return topk_per_batch(products, self.b_enc, self.score_factors(), n, HINT_FACTOR * hint)

    @torch.no_grad()
    def mean_cut(self, batches: Iterable[Float[Tensor, "B d_in"]], *, autocast: bool) -> Float[Tensor, ""]:
        """The threshold that takes the place of a selection at inference: mean, over batches, of the score that the k * B largest end at.

        Paper: Bussmann et al. 2024, arXiv:2412.06410, equation 5.
        """
        cuts = [torch.zeros_like(self.b_enc[0])]
        for x in batches:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):  # not around the batches: they may need products too
                cuts.append(self.select_in_batch(self.products(x), self.config.sparsity_value, cuts[-1])[2].clone())
        return torch.stack(cuts[1:]).mean()

    @torch.no_grad()
    def folded_weights(self) -> dict[str, Tensor]:
        """Weights of the equivalent SAE whose latents are `scores`: decoder norms moved into the encoder."""
        norms = self.decoder_norms() if self.config.rescale_acts_by_decoder_norm else torch.ones(self.d_sae, device=self.W_dec.device)
        # A row that shrank to nothing decodes to nothing: any positive norm gives the same SAE.
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        kept = {name: value.clone() for name, value in self.named_parameters() if name in ("b_dec", "W_skip")}
        return {"W_enc": self.W_enc * norms, "b_enc": self.b_enc * norms, "W_dec": self.W_dec / norms[:, None], **kept}
