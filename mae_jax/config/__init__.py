"""Settings of a run: schema, checks, recipes and overrides."""

from mae_jax.config.overrides import config_dict, parse_arg
from mae_jax.config.schema import (
  RULES,
  SOURCES,
  TASKS,
  UNITS,
  ClassifyConfig,
  Config,
  DataConfig,
  DiscriminatorConfig,
  Duration,
  EvalConfig,
  LabelEfficiencyConfig,
  MeshConfig,
  ModelConfig,
  ObjectiveConfig,
  OptimConfig,
  TrainConfig,
  fixed_changes,
  leaves,
  to_dict,
)
from mae_jax.config.validate import (
  check_key,
  check_name,
  from_config_dict,
  lookup,
  nearest,
  one_of,
)
