from setuptools import setup


setup(
    packages=["brushup", "brushup.rewards"],
    package_dir={"brushup.rewards": "rewards"},
)
