export type { CachedStepConfig, CachedStepMemory, Embeddings } from './cached_step';
export { CachedStep, compileCachedStep } from './cached_step';
export type { TrainingPosition, TrainingState } from './checkpoint';
export { latestCheckpoint, loadTraining, saveTraining } from './checkpoint';
export type {
  CurationConfig,
  CurationMetrics,
  JointSelectorConfig,
  Scored,
  Selection,
} from './curation';
export { JointSelector, superBatch } from './curation';
export type { StepMetrics } from './metrics';
export { MetricsLog, readMetrics } from './metrics';
export type { OptimizerConfig, OptimizerState, OptimizerUpdate } from './optimizer';
export { defaultOptimizer, scheduleInput, stateSpecs, updateParameters } from './optimizer';
export type { ModelReferenceConfig, Reference } from './reference';
export { modelReference, storedReference } from './reference';
export type { ScheduleConfig } from './schedule';
export { cosineSchedule } from './schedule';
export type { Step, StepConfig, StepInputs, StepOutputs, StepScalars } from './step';
export { compileStep } from './step';
export type { TrainerConfig, TrainOptions } from './trainer';
export { Trainer } from './trainer';
export type {
  PairBatch,
  TwoTowersCachedStep,
  TwoTowersStep,
  TwoTowersStepConfig,
} from './two_towers';
export { compileTwoTowersCachedStep, compileTwoTowersStep } from './two_towers';
