"""Which values the keys of the YAML files may have."""

import math

from speechbrain_wap.errors import RecipeError

# Keys that every script reads before it builds anything
NEEDED = (
    "seed",
    "fold",
    "batch_size",
    "number_of_epochs",
    "output_folder",
    "encoder_source",
    "encoder_layer",
)
# Keys that a stage reads while it trains, by its expected key
NEEDED_IN_TRAINING = {
    "mask_ratio": (
        "ema_schedule",
        "epoch_counter",
        "lr_schedule",
        "mask_ratio",
        "mask_span",
        "probe_every",
        "rec_reduction",
        "rec_weight_schedule",
        "statistics",
        "student",
        "target_norm",
        "target_smoothing",
        "teacher",
        "train_logger",
    ),
    "sap_heads": (
        "adapter",
        "augment_mask_ratio",
        "augment_mask_span",
        "classifier_opt_class",
        "compute_cost",
        "epoch_counter",
        "lr_schedule",
        "model_selection",
        "pooled_norm",
        "pooling",
        "predictions_csv",
        "scores_file",
        "statistics",
        "train_logger",
    ),
}
# Whole numbers and their least values
COUNTS = {
    "seed": 0,
    "fold": 1,
    "d_model": 1,
    "num_layers": 1,
    "nhead": 1,
    "d_ffn": 1,
    "max_frames": 1,
    "mlp_layers": 0,
    "predictor_layers": 0,
    "mask_span": 1,
    "target_smoothing": 0,
    "augment_mask_span": 1,
    "sap_heads": 1,
    "num_attributes": 1,
    "revive_after": 1,
    "number_of_epochs": 1,
    "batch_size": 1,
    "num_workers": 0,
    "feature_workers": 0,
    "probe_every": 0,
    "probe_utterances": 1,
}
LARGEST = 2**31
# Those that may be null, and what that means
NULLABLE = {
    "revive_after": "never",
    "feature_workers": "one per core",
    "probe_every": "never",
}
# Numbers and their bounds; None is infinity
NUMBERS = {
    "max_skipped": (0.0, 1.0),
    "corpus_weight": (0.001, 1000.0),
    "dropout": (0.0, 1.0),
    "mask_ratio": (0.0, 1.0),
    "augment_mask_ratio": (0.0, 1.0),
    "ema_decay": (0.0, 1.0),
    "ema_decay_start": (0.0, 1.0),
    "residual_init": (0.0, None),
    "attribute_count_decay": (0.0, 1.0),
    "attribute_rate": (0.0, 1.0),
    "rec_weight_start": (0.0, 1.0),
    "rec_weight_end": (0.0, 1.0),
    "temperature": (1e-6, None),
    "lr": (0.0, 1e30),
    "classifier_lr": (0.0, 1e30),
    "lr_end": (0.0, None),
    "ckpt_interval_minutes": (0.0, None),
    "label_fraction": (0.0, 1.0),
}
# Those of them that must be above the lower bound
ABOVE = ("label_fraction",)
FLAGS = (
    "skip_prep",
    "input_norm",
    "mlp_residual",
    "normalize_before",
    "pooled_norm",
)
CHOICES = {
    "projection_init": ("random", "orthogonal"),
    "target_norm": ("layer", "none"),
    "rec_reduction": ("mean", "sum"),
    "rec_weight_shape": ("linear", "cosine", "constant"),
    "attribute_update": ("count", "constant"),
    "similarity": ("cosine", "distance"),
    "layer_weights": ("softmax", "raw"),
    "variance": ("weighted", "printed"),
    "class_weights": ("none", "balanced"),
    "augmentation": ("balance", "mask", "all", "none"),
    "protocol": ("paper", "held_out"),
    "model_selection": ("last", "best"),
    "adapter_branch": ("teacher", "student"),
    "adapter_data": ("train", "all"),
    "long_utterances": ("error", "cut"),
    "dialogue_style": ("improvised", "scripted", "all"),
    "encoder_context": ("full", "clip"),
    "feature_precision": ("float16", "bfloat16", "float32"),
}


def find_mistake(key, value):
    """Says what is wrong with a key's value.

    Arguments
    ---------
    key : str
        A YAML key; any value of a key that is not listed here will do.
    value : object
        Its value.

    Returns
    -------
    mistake : str or None
        What it must be; None if it is.

    Example
    -------
    >>> find_mistake("nhead", 0)
    'must be a whole number of at least 1'
    >>> find_mistake("nhead", 4) is None
    True
    """
    is_number = isinstance(value, (int, float)) and type(value) is not bool
    if key in COUNTS:
        if value is None and key in NULLABLE:
            return None
        if type(value) is int and value >= LARGEST:
            return f"must be below {LARGEST}"
        if type(value) is not int or value < COUNTS[key]:
            null = f", or null: {NULLABLE[key]}" if key in NULLABLE else ""
            return f"must be a whole number of at least {COUNTS[key]}{null}"
    elif key in NUMBERS:
        low, high = NUMBERS[key]
        if key in ABOVE and not (is_number and low < value <= high):
            return f"must be above {low:g} and at most {high:g}"
        if is_number and low <= value <= (math.inf if high is None else high):
            return None if math.isfinite(value) else "must be finite"
        if high is None:
            return f"must be a number of at least {low:g}"
        return f"must be within {low:g} and {high:g}"
    elif key in FLAGS and type(value) is not bool:
        return "must be True or False"
    elif key in CHOICES and value not in CHOICES[key]:
        return f"is unknown: choose one of {', '.join(CHOICES[key])}"
    return None


def check_values(settings, expected_key, hparams_file):
    """Refuses values that would fail later, and less clearly.

    Arguments
    ---------
    settings : dict
        What :func:`speechbrain_wap.training.settings.read_settings` gave.
    expected_key : str
        A key that the script's YAML has and the other stage's has not.
    hparams_file : str
        The YAML file, for the error.

    Raises
    ------
    RecipeError
        If a key is missing, or a value is of the wrong type or out of range;
        names the key.
    """
    if expected_key not in settings:
        raise RecipeError(
            f"{hparams_file} is not for this script: it has no key "
            f"{expected_key}."
        )
    for key in (*NEEDED, *NEEDED_IN_TRAINING.get(expected_key, ())):
        if key not in settings:
            raise RecipeError(f"{hparams_file} lacks the key {key}: add it.")
    for key, value in settings.items():
        mistake = find_mistake(key, value)
        if mistake is not None:
            raise RecipeError(f"{key}={value} {mistake}.")
    start = settings.get("ema_decay_start", 0.0)
    if start > settings.get("ema_decay", 1.0):
        raise RecipeError(
            f"ema_decay_start ({start}) must not be above ema_decay "
            f"({settings['ema_decay']}), to which it rises."
        )
    heads, d_model = settings.get("nhead", 1), settings.get("d_model", 1)
    if d_model % heads != 0:
        raise RecipeError(
            f"d_model ({d_model}) must be divisible by nhead ({heads})."
        )
