"""What the families of Hugging Face checkpoints have in common."""

import os
import re
from functools import partial

import torch
import transformers
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_wap.encoders.checkpoints import read_config, weights_digest
from speechbrain_wap.errors import RecipeError, first_line

logger = get_logger(__name__)

PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")


class WholeCheckpoint:
    """Makes a wrapper of SpeechBrain's refuse a checkpoint that lacks weights.

    Transformers would draw them at random: other features at every start.
    """

    # what no encoder computes with
    needless = ("decoder.", "masked_spec_embed")

    def _from_pretrained(self, source, save_path, cache_dir, **kwargs):
        kwargs.pop("device", None)

        def load(renamed=None):
            """Loads the model; lists what it lacks and what is too many."""
            self.model, loaded = self.auto_class.from_pretrained(
                source,
                config=self.config,
                output_loading_info=True,
                key_mapping=renamed,
                **kwargs,
            )
            missing = sorted(
                name
                for name in loaded["missing_keys"]
                if not name.startswith(self.needless)
            )
            return missing, sorted(loaded["unexpected_keys"])

        missing, unexpected = load()
        if not missing:
            return
        prefixes = _find_prefixes(missing, unexpected)
        if len(prefixes) == 1:
            # as a model within another is saved: module., model.encoder.
            (prefix,) = prefixes
            if not load({f"^{re.escape(prefix)}": ""})[0]:
                logger.info(f"{source}: its weights' names begin with {prefix}")
                return
        elif prefixes:
            raise RecipeError(
                f"encoder_source={source} holds weights under several names, "
                f"{' and '.join(prefixes)}, as in {prefixes[0]}{missing[0]}: "
                "save the one that is meant by itself."
            )
        other = (
            f", and has others, such as {unexpected[0]}" if unexpected else ""
        )
        raise RecipeError(
            f"encoder_source={source} lacks {len(missing)} weights that "
            f"config.json asks for, first {missing[0]}{other}: take both "
            "from one model, under these names (save_pretrained)."
        )

    def load_feature_extractor(self, source, cache_dir=None, **kwargs):
        """Loads it, or makes one of config.json alone where there is none."""
        if _has_preprocessor(source):
            super().load_feature_extractor(source, cache_dir, **kwargs)
        else:
            self.feature_extractor = self.make_feature_extractor(self.config)


def _has_preprocessor(folder):
    """Tells whether a checkpoint says how its input is made."""
    return any(os.path.isfile(os.path.join(folder, n)) for n in PREPROCESSORS)


def _find_prefixes(missing, unexpected):
    """Lists what stands before the missing weights' names, sorted."""
    names = missing[:: max(1, len(missing) // 20)]
    return sorted(
        {
            found.removesuffix(name)
            for name in names
            for found in unexpected
            if found.endswith(f".{name}")
        }
    )


def _keep_input(states, index, layer, args, kwargs):
    """Hook that keeps what enters a layer."""
    states[index] = args[0] if args else kwargs["hidden_states"]


def _keep_output(states, index, layer, args, output):
    """Hook that keeps what leaves a layer."""
    states[index] = output[0] if isinstance(output, tuple) else output


# Whose preprocessor_config.json most models of a family have
BASE_MODELS = {
    "data2vec-audio": "facebook/data2vec-audio-base",
    "hubert": "facebook/hubert-base-ls960",
    "wav2vec2": "facebook/wav2vec2-base",
    "wavlm": "microsoft/wavlm-base (wavlm-large has another)",
}


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
            for name in PREPROCESSORS
            if os.path.isfile(os.path.join(folder, name))
        }
        try:
            # with the defaults that config.json may leave out
            self.settings = transformers.AutoConfig.from_pretrained(folder)
        except Exception as error:  # of several libraries
            raise self._refuse(
                error, "take config.json from the model that the weights are of"
            )
        if not self.preprocessor:
            self._do_without_preprocessor()
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
            raise self._refuse(
                f"{key} is {value!r}",
                f"write the base model's into {' or '.join(self.preprocessor)}",
            )
        return value

    def _do_without_preprocessor(self):
        """Goes by config.json alone where that tells enough, or refuses."""
        if not self.tells_preprocessing():
            raise RecipeError(
                f"encoder_source={self.folder} lacks preprocessor_config.json, "
                "which says whether the waveform is normalised (do_normalize): "
                "copy that file from the model that this one was made of, such "
                f"as {BASE_MODELS[self.config['model_type']]}."
            )
        logger.warning(
            f"encoder_source={self.folder} lacks preprocessor_config.json: "
            "what its family is usually given is used (16000 Hz). If the base "
            "model has such a file, copy it into the folder."
        )

    def tells_preprocessing(self):
        """Tells whether config.json says all that the input depends on."""
        return True

    def _refuse(self, error, cure):
        """Makes the RecipeError for a checkpoint that cannot be loaded."""
        return RecipeError(
            f"encoder_source={self.folder} cannot be loaded "
            f"({first_line(error).rstrip('.')}): {cure}."
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
            except RecipeError:
                raise
            except Exception as error:  # of several libraries
                raise self._refuse(error, self._find_cure(error))
            self.prepare(wrapper.model.encoder, layers)
            # A half-precision checkpoint loads in half precision, and
            # SpeechBrain leaves a frozen Whisper in train mode.
            self.wrapper = wrapper.requires_grad_(False).float().eval()
        self.wrapper.to(device)

    def _find_cure(self, error):
        """Says what to do about what another library says of weights."""
        text = str(error)
        if "size mismatch" in text or "mismatched" in text.lower():
            return "take config.json and weights of one model"
        if "no file named" in text:
            return "call the weights model.safetensors or pytorch_model.bin"
        if "feature extractor" in text or "preprocessor" in text:
            return "take preprocessor_config.json from the base model"
        return (
            "see whether transformers.AutoModel.from_pretrained reads the "
            "folder; if it does not, download the weights again"
        )

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
