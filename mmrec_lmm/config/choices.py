"""Values of settings that are also choices of a flag, in a module that imports next to nothing."""

from typing import Literal, get_args

Protocol = Literal["default", "mmrec"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
SplitRule = Literal["ratio", "leave-one-out", "user-time", "global-time", "cold-item"]
SPLIT_RULES: tuple[SplitRule, ...] = get_args(SplitRule)

#: What people call keys elsewhere, for the hint at an unknown one.
CALLED_ELSEWHERE = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "train_batch_size",
    "batch_size": "train_batch_size",
    "optimizer": "learner",
    "optim": "learner",
    "patience": "stopping_step",
    "early_stopping": "stopping_step",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "negatives": "n_negatives",
    "num_negatives": "n_negatives",
    "negative_sampler": "sampler",
    "emb_size": "embedding_size",
    "dim": "embedding_size",
}

#: What `clean` removes if it is asked for, and what that costs.
REMOVABLE = {
    "weights": "pretrained weights and vocabularies; downloaded again",
    "downloads": "files of public data sets; downloaded again",
    "partial": "beginnings of downloads; they start over",
    "features": "tables of encoded features; encoded again",
    "tuned": "fine-tuned encoders; tuned again",
    "prepared": "items prepared for tuning; prepared again",
    "states": "hidden states of frozen encoders; encoded again",
    "graphs": "what model files of MMRec's keep beside data, such as item graphs; made again",
    "shards": "what unfinished encodings and tunings have done; they start over",
    "hashes": "remembered hashes of files; the files are read again",
    "checkpoints": "unfinished runs; they start over",
    "logs": "logs of runs",
    "index": "the index of results; made again",
    "temporaries": "unfinished files of dead processes; of no use",
    "locks": "lock files that nobody holds; made again",
}
