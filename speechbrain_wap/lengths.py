"""Relative lengths (SpeechBrain's convention) to frames and masks."""

import torch


def valid_frames(lens, num_steps):
    """Turns relative lengths into a mask of the valid frames.

    Arguments
    ---------
    lens : torch.Tensor
        Relative lengths, shape [B], each in 0 to 1, where 1 is the longest.
    num_steps : int
        Number of frames T of the padded batch.

    Returns
    -------
    num_frames : torch.Tensor
        Number of valid frames of each utterance, shape [B].
    valid : torch.Tensor
        Shape [B, T], boolean, True where a frame is not padding.

    Example
    -------
    >>> valid_frames(torch.tensor([1.0, 0.5]), 4)[1]
    tensor([[ True,  True,  True,  True],
            [ True,  True, False, False]])
    """
    # rounded, since lens = n / T in float32 times T may fall just below n
    num_frames = torch.round(lens.double() * num_steps).long()
    steps = torch.arange(num_steps, device=lens.device)
    return num_frames, steps[None, :] < num_frames[:, None]


def select_frames(x, chosen):
    """Takes frames out of a batch, without waiting for a GPU.

    Arguments
    ---------
    x : torch.Tensor
        Shape [B, T, D].
    chosen : torch.Tensor
        Shape [B, T], boolean, on the CPU.

    Returns
    -------
    frames : torch.Tensor
        Shape [N, D], in the order of ``x``.

    Example
    -------
    >>> x = torch.arange(4.0).view(1, 4, 1)
    >>> select_frames(x, torch.tensor([[True, False, False, True]]))
    tensor([[0.],
            [3.]])
    """
    places = chosen.flatten().nonzero()[:, 0].to(x.device, non_blocking=True)
    return x.flatten(end_dim=1).index_select(0, places)
