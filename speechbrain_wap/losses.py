"""The losses of adapter training (Eq. 1 and 6)."""

from torch.nn import functional as F


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
        float32.

    Raises
    ------
    ValueError
        If ``reduction`` is unknown.

    Example
    -------
    >>> import torch
    >>> mask = torch.tensor([[True, False]])
    >>> zeros, ones = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    >>> float(masked_reconstruction_loss(zeros, ones, mask))
    3.0
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(
            f"reduction is {reduction!r}, but must be 'sum' or 'mean'"
        )
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    difference = student.float() - teacher.detach().float()
    per_frame = difference.square().sum(dim=-1)  # (N,)
    if reduction == "mean":
        per_frame = per_frame / student.shape[-1]
    return per_frame.mean() if len(per_frame) else per_frame.sum()


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
        float32.

    Example
    -------
    >>> import torch
    >>> loss = pseudo_label_loss(torch.zeros(2, 4), torch.tensor([0, 3]))
    >>> round(float(loss), 4)
    1.3863
    """
    reduction = "mean" if len(codes) else "sum"
    return F.cross_entropy(logits.float(), codes, reduction=reduction)


def adapter_loss(rec_loss, pce_loss, rec_weight):
    """Joins the two losses of adapter training (Eq. 6).

    Arguments
    ---------
    rec_loss : torch.Tensor
        Eq. 1.
    pce_loss : torch.Tensor
        Pseudo-label cross entropy.
    rec_weight : float
        lambda, 0 to 1.

    Returns
    -------
    loss : torch.Tensor
        lambda * rec_loss + (1 - lambda) * pce_loss

    Example
    -------
    >>> adapter_loss(2.0, 4.0, 0.75)
    2.5
    """
    return rec_weight * rec_loss + (1.0 - rec_weight) * pce_loss
