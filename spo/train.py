"""`accelerate launch -m spo.train`: the script train_spo.py, from any folder."""

from spo.entry_points import train

if __name__ == "__main__":
    train()
