"""The losses of adapter training (Eq. 1 and 6)."""

from torch.nn import functional as F

from speechbrain_wap.errors import check_choice, check_number
from speechbrain_wap.precision import at_least_float32
from speechbrain_wap.schedules import Schedule

REDUCTIONS = ("sum", "mean")


def masked_reconstruction_loss(student, teacher, mask=None, reduction="sum"):
    """Squared distance of student and teacher on the masked frames (Eq. 1).

    Arguments
    ---------
    student : torch.Tensor
        Z^s, shape [B, T, D].
    teacher : torch.Tensor
        Z^t, shape [B, T, D]; no gradient flows into it.
    mask : torch.Tensor, optional
        M, shape [B, T], boolean, True on the masked frames. Without it, the
        masked frames alone are given, shape [N, D].
    reduction : str
        Over the D dimensions of a frame (D10): "sum" is Eq. 1 as printed,
        "mean" divides it by D, which brings the two losses of Eq. 6 to one
        scale.

    Returns
    -------
    rec_loss : torch.Tensor
        A scalar, averaged over the masked frames, 0 where there are none; in
        float32 at least.

    Example
    -------
    >>> import torch
    >>> mask = torch.tensor([[True, False]])
    >>> zeros, ones = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    >>> float(masked_reconstruction_loss(zeros, ones, mask))
    3.0
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    teacher, student = map(at_least_float32, (teacher.detach(), student))
    difference = teacher - student  # (N, D)
    per_frame = difference.square().sum(dim=-1)  # (N,)
    if reduction == "mean":
        per_frame = per_frame / student.shape[-1]
    return per_frame.mean() if len(per_frame) else per_frame.sum()  # Eq. 1


def pseudo_label_loss(logits, codes):
    """Cross entropy with the teacher's local attributes as labels (Eq. 4, 6).

    Arguments
    ---------
    logits : torch.Tensor
        The student's logits on the masked frames, shape [N, K].
    codes : torch.Tensor
        Index of the teacher's nearest attribute for the same frames, shape
        [N].

    Returns
    -------
    pce_loss : torch.Tensor
        A scalar, averaged over the frames, 0 where there are none; in
        float32 at least.

    Example
    -------
    >>> import torch
    >>> loss = pseudo_label_loss(torch.zeros(2, 4), torch.tensor([0, 3]))
    >>> round(float(loss), 4)
    1.3863
    """
    reduction = "mean" if len(codes) else "sum"
    return F.cross_entropy(at_least_float32(logits), codes, reduction=reduction)


def adapter_loss(rec_loss, pce_loss, rec_weight):
    """Joins the two losses of adapter training (Eq. 6).

    Arguments
    ---------
    rec_loss, pce_loss : torch.Tensor
        The reconstruction loss (Eq. 1) and the pseudo-label cross entropy.
    rec_weight : float
        lambda, 0 to 1.

    Returns
    -------
    loss : torch.Tensor
        A scalar.

    Example
    -------
    >>> adapter_loss(2.0, 4.0, 0.75)
    2.5
    """
    return rec_weight * rec_loss + (1.0 - rec_weight) * pce_loss  # Eq. 6


class AdapterObjective:
    """What adapter training minimises (Eq. 1, 4, 6).

    Arguments
    ---------
    reduction : str
        "sum" or "mean" (D10), see :func:`masked_reconstruction_loss`.
    rec_weight : callable, optional
        lambda of Eq. 6 as a function of the share of the training that is done
        (D7); by default, it falls linearly from 1.0 to 0.5.

    Example
    -------
    >>> import torch
    >>> z, codes = torch.zeros(2, 3), torch.tensor([0, 3])
    >>> losses = AdapterObjective()(z, z, torch.zeros(2, 4), codes, 1.0)
    >>> round(float(losses["loss"]), 4), float(losses["rec_loss"])
    (0.6931, 0.0)
    """

    def __init__(self, reduction="mean", rec_weight=None):
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction
        self.rec_weight = rec_weight or Schedule(1.0, 0.5)
        for end, progress in (("start", 0.0), ("end", 1.0)):
            weight = self.rec_weight(progress)
            check_number(f"rec_weight_{end}", weight, least=0.0, most=1.0)

    def __call__(self, z_student, targets, logits, codes, progress):
        """Computes the losses of the M masked frames.

        Arguments
        ---------
        z_student, targets : torch.Tensor
            The student's frames and the teacher's, shape [M, D].
        logits : torch.Tensor
            The student's logits of the local attributes, shape [M, K].
        codes : torch.Tensor
            The teacher's local attributes (Eq. 4), shape [M].
        progress : float
            Share of the training that is done, 0 to 1.

        Returns
        -------
        losses : dict
            Scalars: "loss", of "rec_loss" and "pce_loss".
        """
        # gradients are summed in this order, on which their last bits depend
        pce_loss = pseudo_label_loss(logits, codes)
        rec_loss = masked_reconstruction_loss(
            z_student, targets, reduction=self.reduction
        )
        loss = adapter_loss(rec_loss, pce_loss, self.rec_weight(progress))
        return {"loss": loss, "rec_loss": rec_loss, "pce_loss": pce_loss}
