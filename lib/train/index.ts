export type { MomentsEntry, TrainingPosition, TrainingState } from './checkpoint';
export { latestCheckpoint, loadTraining, openTraining, saveTraining } from './checkpoint';
export type { StepMetrics } from './metrics';
export type { Inheritance, InheritedParameter } from './inherit';
export { freshState, inheritCheckpoint } from './inherit';
export { MetricsLog, readMetrics } from './metrics';
export type {
  AdmittedBatch,
  Averages,
  AverageSpec,
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
export type { NaflexObjectiveConfig } from './naflex';
export { naflexObjective } from './naflex';
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
export type { ScheduleConfig, ScheduleRange } from './schedule';
export { cosineSchedule, ScheduleProgress } from './schedule';
export type { RecipeRunOptions } from './recipe_run';
export { hasEnded, runRecipe, stageFolder, stagesOf, stageUpdates } from './recipe_run';
export type { StageObjectiveOptions } from './stage_objective';
export { batchParts, naflexLengthOptions, stageDecoder, stageObjective } from './stage_objective';
export type { StepConfig, StepInputs, StepOutputs, StepProgram, StepScalars } from './step';
export { compileStep } from './step';
export type { TrainerConfig, TrainOptions } from './trainer';
export { MOST_SKIPPED, Trainer } from './trainer';
export type { PairObjectiveConfig, TwoTowersStep, TwoTowersStepConfig } from './two_towers';
export { compileTwoTowersStep, pairObjective } from './two_towers';
