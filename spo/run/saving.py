"""The trained model in Hugging Face form: tried before the first step, written after the last."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file

from spo.config import SPOConfig
from spo.networks.build import CRITIC, POLICY
from spo.networks.network import Network
from spo.networks.sharding import whole_on_main
from spo.run import folder
from spo.run.checkpoint import flush, free_name
from spo.values.critic import Critic

HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError)

ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)
"""What Transformers, PEFT and safetensors raise where a model cannot be saved."""

SAMPLING = ["temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"]
"""Fields of a generation config that mean nothing, and are refused, beside do_sample=False."""


@dataclass(frozen=True)
class Trained:
    """What a saved model is made of; `card` is the text of its README.md."""

    policy: Network
    critic: Critic
    processing_class: Any
    args: SPOConfig
    card: str


States = dict[str, dict[str, Any]]
"""Of "policy" and "critic", the state dicts of models whose weights are cut."""


def whole_states(trained: Trained) -> States:
    """What is to be put together before process 0 can save it alone; all processes call it."""
    networks = {"policy": trained.policy, "critic": trained.critic.network}
    return {
        name: whole_on_main(network.model.state_dict())
        for name, network in networks.items()
        if network is not None and network.sharded is not None and network.adapter is None
    }


def save_model(path: Path, trained: Trained, states: States) -> None:
    """Policy (adapter or full), critic, tokenizer, configuration and model card.

    Each file is whole or the one from before; the run's own folder remembers which they are.
    """
    temporary = path / ".model.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _save_policy(trained, states, temporary)
        _save_critic(trained, states, temporary / "critic")
        folder.write_config(temporary, trained.args)
        (temporary / "README.md").write_text(trained.card)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        names = [file.relative_to(temporary).as_posix() for file in files]
        _make_way(path, names)
        for file, name in zip(files, names, strict=True):
            flush(file)
            (path / name).parent.mkdir(exist_ok=True)
            os.replace(file, path / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_way(path: Path, names: list[str]) -> None:
    """In a run's folder, put a person's own files of these names aside and note which are ours."""
    run = folder.read_run(path)
    if not run:
        return
    ours = {*run.get("files", []), folder.CONFIG_FILE}
    for name in names:
        if name not in ours and (path / name).exists():
            (path / name).rename(free_name(path / name))
    folder.write_run(path, files=sorted({*names, *run.get("files", [])}))


def try_saving(path: Path, trained: Trained) -> str:
    """Save all but the weights and throw it away; returns what had to be mended, or "".

    Raises:
        ValueError: something would have failed after the last step.
    """
    temporary = path / ".dry-save.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    policy, critic = trained.policy, trained.critic
    what = "the folder"
    try:
        temporary.mkdir(parents=True)
        what = "the tokenizer"
        trained.processing_class.save_pretrained(temporary)
        what = "the generation config"
        mended = _mend_generation_config(policy, temporary)
        what = "the policy's config"
        _config_of(policy, POLICY).save_pretrained(temporary)
        if critic.network is not None:
            what = "the critic's config"
            (temporary / "critic").mkdir()
            _try_critic(critic.network, policy, temporary / "critic")
        what = "the model card and the settings"
        (temporary / "README.md").write_text(trained.card)
        folder.write_config(temporary, trained.args)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Saving to {path} would fail after training, at {what}: {' '.join(str(error).split())}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return mended


def _config_of(network: Network, adapter: str) -> Any:
    model = network.model
    return model.peft_config[adapter] if isinstance(model, PeftModel) else model.config


def _mend_generation_config(policy: Network, temporary: Path) -> str:
    """Drop the fields that Transformers refuses to save beside do_sample=False."""
    config = getattr(policy.model, "generation_config", None)
    if config is None or isinstance(policy.model, PeftModel):  # an adapter is saved without one
        return ""
    try:
        config.save_pretrained(temporary)
    except ValueError:
        dropped = [n for n in SAMPLING if getattr(config, n, None) is not None]
        for name in dropped:
            setattr(config, name, None)
        config.save_pretrained(temporary)
        return (
            f"The model's generation_config has {', '.join(dropped)} beside do_sample=False, which "
            "cannot be saved; they mean nothing there and are left out."
        )
    return ""


def _try_critic(network: Network, policy: Network, path: Path) -> None:
    if network.model is policy.model:
        _write_adapter_config(network.model.peft_config[CRITIC], path)
    elif isinstance(network.model, PeftModel):
        network.model.active_peft_config.save_pretrained(path)
    else:
        network.model.config.save_pretrained(path)


def _save_policy(trained: Trained, states: States, path: Path) -> None:
    """The policy, or its adapter alone."""
    model = trained.policy.model
    if isinstance(model, PeftModel):
        model.save_pretrained(path, selected_adapters=[POLICY])
    else:
        model.save_pretrained(path, state_dict=states.get("policy"))
    trained.processing_class.save_pretrained(path)


def _save_critic(trained: Trained, states: States, path: Path) -> None:
    """The critic's network as a sequence-classification checkpoint, or, on a shared base, an
    adapter of one; beside it the sums of the regression. Nothing without a network."""
    network, regression = trained.critic.network, trained.critic.regression
    if network is None:
        return
    trained.processing_class.save_pretrained(path)
    if regression is not None:
        regression.save(path)
    if network.model is not trained.policy.model:
        network.model.save_pretrained(path, state_dict=states.get("critic"))
        return
    state = get_peft_model_state_dict(network.model, adapter_name=CRITIC)
    state["base_model.model.score.weight"] = network.head.weight.detach()
    save_file({k: v.contiguous() for k, v in state.items()}, path / "adapter_model.safetensors")
    _write_adapter_config(network.model.peft_config[CRITIC], path)


def _write_adapter_config(config: Any, path: Path) -> None:
    saved = json.loads(json.dumps(config.to_dict(), default=_jsonable))
    saved |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"], "inference_mode": True}
    (path / "adapter_config.json").write_text(json.dumps(saved, indent=2, sort_keys=True))


def _jsonable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


# --- the hub ---------------------------------------------------------------------------------


def create_repo(output_dir: Path, args: SPOConfig) -> str:
    """The repository to upload to, made if it is not there; its id.

    Raises:
        ValueError: not logged in, not allowed, no network, or a name the hub refuses.
    """
    repo_id = args.hub_model_id or output_dir.name
    try:
        repo = HfApi().create_repo(repo_id, private=args.hub_private_repo, exist_ok=True)
    except HUB_ERRORS as error:
        raise ValueError(
            f"push_to_hub cannot reach the repository {repo_id!r}: {' '.join(str(error).split())}; "
            "log in with `hf auth login`, or leave push_to_hub out."
        ) from error
    return repo.repo_id


def upload(output_dir: Path, repo_id: str, commit_message: str, more: dict[str, Any]) -> str:
    """Upload the saved model, the critic and the card; checkpoints and rollouts stay here.

    `more` are further arguments of `upload_folder`: token, revision, run_as_future.
    """
    return HfApi().upload_folder(
        repo_id=repo_id,
        folder_path=output_dir,
        commit_message=commit_message,
        ignore_patterns=[
            *("checkpoint-*", ".checkpoint-*", "rollouts/*", "*.tmp"),
            *("spo_run.json", "metrics.jsonl.old-*", "non-finite-*", f"{folder.VLLM_FOLDER}/*"),
        ],
        **more,
    )
