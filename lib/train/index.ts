export type { TrainingPosition, TrainingState } from './checkpoint';
export { latestCheckpoint, loadTraining, openTraining, saveTraining } from './checkpoint';
export type { StepMetrics } from './metrics';
export type { Inheritance, InheritedParameter } from './inherit';
export { inheritCheckpoint } from './inherit';
export { MetricsLog, readMetrics } from './metrics';
export type {
  AdmittedBatch,
  Averages,
  AverageSpec,
  Objective,
  ObjectiveStep,
  StepBatch,
  TrainedParameters,
} from './objective';
export type { OptimizerConfig, OptimizerState, OptimizerUpdate } from './optimizer';
export { defaultOptimizer, scheduleInput, stateSpecs, updateParameters } from './optimizer';
export type { NaflexObjectiveConfig } from './naflex';
export { naflexObjective } from './naflex';
export type { ScheduleConfig, ScheduleRange } from './schedule';
export { cosineSchedule, ScheduleProgress } from './schedule';
export type { StepConfig, StepInputs, StepOutputs, StepScalars } from './step';
export { compileStep } from './step';
export type { TrainerConfig, TrainOptions } from './trainer';
export { MOST_SKIPPED, Trainer } from './trainer';
export type { PairObjectiveConfig, TwoTowersStep, TwoTowersStepConfig } from './two_towers';
export { compileTwoTowersStep, pairObjective } from './two_towers';
