"""What the families of Hugging Face checkpoints have in common."""

import os
from functools import partial

import torch
import transformers
from torch import nn

from speechbrain_wap.encoders.checkpoints import read_config, weights_digest
from speechbrain_wap.errors import RecipeError, first_line


class WholeCheckpoint:
    """Makes a wrapper of SpeechBrain's refuse a checkpoint that lacks weights.

    Transformers would draw them at random: other features at every start.
    """

    # what no encoder computes with
    needless = ("decoder.", "masked_spec_embed")

    def _from_pretrained(self, source, save_path, cache_dir, **kwargs):
        kwargs.pop("device", None)
        self.model, loaded = self.auto_class.from_pretrained(
            source, config=self.config, output_loading_info=True, **kwargs
        )
        missing = sorted(
            name
            for name in loaded["missing_keys"]
            if not name.startswith(self.needless)
        )
        if missing:
            raise ValueError(
                f"{len(missing)} weights are missing, first {missing[0]}"
            )


def _keep_input(states, index, layer, args, kwargs):
    """Hook that keeps what enters a layer."""
    states[index] = args[0] if args else kwargs["hidden_states"]


def _keep_output(states, index, layer, args, output):
    """Hook that keeps what leaves a layer."""
    states[index] = output[0] if isinstance(output, tuple) else output


class HuggingFaceFrontEnd(nn.Module):
    """A transformer checkpoint behind SpeechBrain's wrapper.

    Reads the config only; weights are loaded when the first utterance is
    encoded, which never happens where the cache is complete. A family says
    which wrapper it takes, its ``frame_rate`` and ``min_samples``, and has a
    method ``run_model(signal)`` that returns the model's output, [T, D].

    Arguments
    ---------
    folder : str
        The checkpoint's folder.
    config : dict
        Content of its config.json.
    context : str
        "full" or "clip": what Whisper sees.
    """

    wrapper_class = None
    wrapper_options = {"dtype": torch.float32}

    def __init__(self, folder, config, context="full"):
        super().__init__()
        self.folder = folder
        self.config = config
        self.context = context
        # transformers 5 reads the second one, too, and prefers it
        self.preprocessor = {
            name: read_config(folder, name)
            for name in ("preprocessor_config.json", "processor_config.json")
            if os.path.isfile(os.path.join(folder, name))
        }
        try:
            # with the defaults that config.json may leave out
            self.settings = transformers.AutoConfig.from_pretrained(folder)
        except Exception as error:  # of several libraries
            raise self._refuse(error)
        if getattr(self.settings, "add_adapter", False):
            raise RecipeError(
                f"encoder_source={folder} has an adapter on top "
                "(add_adapter: true), which is not supported: wire it with "
                "encoder: !new: in the YAML."
            )
        self.sample_rate = self.get_preprocessing("sampling_rate", 16000)
        self.output_size = self.settings.hidden_size
        self.num_layers = self.settings.num_hidden_layers
        self.wrapper = None
        self.states = {}

    def get_preprocessing(self, key, default):
        """Looks up how the checkpoint's feature extractor is set."""
        value = default
        for content in self.preprocessor.values():
            content = content.get("feature_extractor", content)
            value = content.get(key, value)
        if type(value) is not type(default):
            raise self._refuse(f"{key} is {value!r}")
        return value

    def _refuse(self, error):
        """Makes the RecipeError for a checkpoint that cannot be loaded."""
        return RecipeError(
            f"encoder_source={self.folder} cannot be loaded "
            f"({first_line(error).rstrip('.')}): download it again."
        )

    def identity(self):
        """Returns the family, all settings, and a digest of the weights."""
        return {
            "family": self.config["model_type"],
            "config": self.config,
            "preprocessor": self.preprocessor,
            "weights": weights_digest(self.folder),
        }

    def load(self, layers, device):
        """Loads the weights in float32, frozen, in eval mode, once."""
        if self.wrapper is None:
            try:
                wrapper = self.wrapper_class(
                    self.folder,
                    self.folder,
                    freeze=True,
                    **self.wrapper_options,
                )
            except Exception as error:  # of several libraries
                raise self._refuse(error)
            self.prepare(wrapper.model.encoder, layers)
            # A half-precision checkpoint loads in half precision, and
            # SpeechBrain leaves a frozen Whisper in train mode.
            self.wrapper = wrapper.requires_grad_(False).float().eval()
        self.wrapper.to(device)

    def prepare(self, encoder, layers):
        """Keeps what passes the chosen layers, and drops those beyond.

        Hidden states as Hugging Face returns them are not used: the last of
        them is normalised where the others are not.
        """
        for index in layers:
            if index == 0:
                hook = partial(_keep_input, self.states, 0)
                layer = encoder.layers[0]
                layer.register_forward_pre_hook(hook, with_kwargs=True)
            elif index < self.num_layers:
                hook = partial(_keep_output, self.states, index)
                encoder.layers[index - 1].register_forward_hook(hook)
        encoder.layers = encoder.layers[: max(*layers, 1)]

    def forward(self, signal, layers):
        """Encodes one utterance without padding, to [len(layers), T, D]."""
        output = self.run_model(signal)
        states = {
            i: state[0, : len(output)] for i, state in self.states.items()
        }
        states[self.num_layers] = output
        self.states.clear()
        return torch.stack([states[index] for index in layers])
