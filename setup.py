"""The packages: `brushup/rewards` is a link to `rewards/`, where one file is one reward."""

from setuptools import find_packages, setup


setup(packages=find_packages(include=["brushup*"]))
