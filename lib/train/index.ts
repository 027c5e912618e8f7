export type { CachedStepConfig, CachedStepMemory } from './cached_step';
export { CachedStep, compileCachedStep } from './cached_step';
export type {
  LazyArray,
  MomentsEntry,
  Placement,
  StateKind,
  TrainingPosition,
  TrainingState,
} from './checkpoint';
export { latestCheckpoint, loadTraining, openTraining, placedOn, saveTraining } from './checkpoint';
export type {
  CurationConfig,
  CurationMetrics,
  JointSelectorConfig,
  Scored,
  Selection,
  SelectionOutcome,
} from './curation';
export { JointSelector, superBatch } from './curation';
export type { StepMetrics } from './metrics';
export type { Inheritance, InheritedParameter } from './inherit';
export { freshState, inheritCheckpoint } from './inherit';
export { MetricsLog, readMetrics } from './metrics';
export type {
  AdmittedBatch,
  Averages,
  AverageSpec,
  Embeddings,
  Objective,
  ObjectiveStep,
  StepBatch,
  TargetBatch,
  TrainedParameters,
  ViewBatch,
} from './objective';
export { wholeStep } from './objective';
export type { OptimizerConfig, OptimizerState, OptimizerUpdate } from './optimizer';
export { defaultOptimizer, scheduleInput, stateSpecs, updateParameters } from './optimizer';
export type { OpenReferenceOptions } from './open_reference';
export { checkpointReference, folderReference } from './open_reference';
export type { Recipe, RecipeInput, Stage } from './recipe';
export {
  trainsDecoder,
  trainsSelfDistillation,
  overrideRecipe,
  parseRecipe,
  stageModel,
  stageOf,
} from './recipe';
export type { SmallRecipe } from './recipe_presets';
export { oneGpuRecipe, publishedRecipe, publishedSizes, smallRecipe } from './recipe_presets';
export type { ModelReferenceConfig, Reference } from './reference';
export { modelReference, storedReference } from './reference';
export type { ScheduleConfig, ScheduleRange } from './schedule';
export { cosineSchedule, ScheduleProgress } from './schedule';
export type { RecipeRunOptions } from './recipe_run';
export {
  hasEnded,
  runRecipe,
  stageFolder,
  stagesOf,
  stageUpdates,
  streamBatch,
} from './recipe_run';
export type { StageObjectiveOptions } from './stage_objective';
export { batchParts, naflexLengthOptions, stageDecoder, stageObjective } from './stage_objective';
export type { Step, StepConfig, StepInputs, StepOutputs, StepProgram, StepScalars } from './step';
export { compileStep } from './step';
export type { TrainerConfig, TrainOptions } from './trainer';
export { MOST_SKIPPED, rowsOfRank, Trainer } from './trainer';
export type {
  PairObjectiveConfig,
  TwoTowersCachedStep,
  TwoTowersStep,
  TwoTowersStepConfig,
} from './two_towers';
export { compileTwoTowersCachedStep, compileTwoTowersStep, pairObjective } from './two_towers';
export type { LossOverRanksConfig, LossOverRanksResult, TextExchange } from './loss_over_ranks';
export { LossOverRanks } from './loss_over_ranks';
export type { Sharding } from './state_over_ranks';
export type { RanksConfig, ScheduleInputs, StepOverRanksConfig } from './step_over_ranks';
export { placedOverRanks, StepOverRanks } from './step_over_ranks';
