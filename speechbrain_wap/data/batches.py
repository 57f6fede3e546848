"""Batches: frames travel without padding, masks come with them.

Padding is three quarters of a batch like IEMOCAP's. Frames are joined where
the loader collates, in its worker if there is one, and padded where they are
used: a GPU is sent what is speech.
"""

import torch
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_wap.packing import send, valid_frames


class Collate:
    """Makes a batch of utterances, and the masks of their frames.

    Arguments
    ---------
    mask : callable, optional
        Given the utterances' values of ``keys``, each a list, then their
        numbers of frames [B] and the epoch, makes a mask of their frames, [B,
        T]; as :class:`speechbrain_wap.masking.UtteranceMasks` does.
    keys : tuple of str
        What the mask depends on.

    Attributes
    ----------
    epoch : torch.Tensor
        One number, counted from 1; 0 for masks that are always the same. With
        worker processes, it has to be in shared memory.

    Example
    -------
    >>> from speechbrain_wap.masking import UtteranceMasks
    >>> feats = torch.ones(4, 8)
    >>> utterances = [{"id": f"u{n}", "feats": feats[:n]} for n in (2, 4)]
    >>> batch = Collate(UtteranceMasks(mask_ratio=0.5))(utterances)
    >>> batch.feats.data.shape, batch.masks["feats"].sum(dim=1)
    (torch.Size([6, 8]), tensor([1, 2]))
    """

    def __init__(self, mask=None, keys=("id",)):
        self.mask = mask
        self.keys = keys
        self.epoch = torch.zeros(1, dtype=torch.long)

    def __call__(self, utterances):
        """Makes the batch.

        Arguments
        ---------
        utterances : list of dict
            What the dataset gives of each.

        Returns
        -------
        batch : speechbrain.dataio.batch.PaddedBatch
            Tensors are what :func:`pad_frames` takes; ``masks`` has one on the
            CPU for each, by key, if any are wanted.
        """
        batch = PaddedBatch(utterances, padding_func=_join_frames)
        if self.mask is not None:
            values = [[one[key] for one in utterances] for key in self.keys]
            batch.masks = {
                key: self.mask(*values, batch[key].lengths, int(self.epoch))
                for key, value in utterances[0].items()
                if torch.is_tensor(value)
            }
        return batch


class OneByOne:
    """Batches of one utterance each, as a model's hooks see them.

    Arguments
    ---------
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        The utterances; they are gone through as often as is asked for.
    device : torch.device
        Where the batches are.
    """

    def __init__(self, dataset, device):
        self.dataset, self.device = dataset, device

    def __iter__(self):
        for item in self.dataset:
            yield PaddedBatch([item]).to(self.device)


def _join_frames(utterances):
    """Joins frames [T, D] of utterances, [N, D]; and counts them, [B]."""
    return torch.cat(utterances), torch.tensor(list(map(len, utterances)))


def pad_frames(joined, device):
    """Pads the frames of a batch where they are used, without waiting.

    Arguments
    ---------
    joined : speechbrain.dataio.batch.PaddedData
        Frames of all utterances [N, D], or [N, L, D] of L layers, and numbers
        of frames [B].
    device : torch.device
        Where they are used.

    Returns
    -------
    feats : torch.Tensor
        Shape [B, T, D] or [B, T, L, D], on the device.
    lens : torch.Tensor
        Relative lengths, shape [B], on the CPU.

    Example
    -------
    >>> from speechbrain.dataio.batch import PaddedData
    >>> joined = PaddedData(torch.ones(3, 1), torch.tensor([1, 2]))
    >>> feats, lens = pad_frames(joined, "cpu")
    >>> feats[:, :, 0].tolist(), lens.tolist()
    ([[1.0, 0.0], [1.0, 1.0]], [0.5, 1.0])
    """
    frames, num_frames = joined
    num_steps = int(num_frames.max())
    lens = (num_frames.double() / num_steps).float()
    places = valid_frames(lens, num_steps)[1].flatten().nonzero()[:, 0]
    shape = len(lens) * num_steps, *frames.shape[1:]
    feats = torch.zeros(shape, dtype=frames.dtype, device=device)
    frames = frames.to(device, non_blocking=True)
    feats.index_copy_(0, send(places, device), frames)
    return feats.unflatten(0, (len(lens), num_steps)), lens
