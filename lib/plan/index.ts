export type { DecoderConfig, Operations } from './cost';
export { activationBytes, forwardOperations, lossOperations, parametersOf } from './cost';
export type { GpuFigures, GpuName } from './devices';
export { gpus } from './devices';
export type {
  Exchange,
  PlanConfig,
  PlanMemory,
  PlanTime,
  PlanTraffic,
  Sharding,
  StepPlan,
} from './plan';
export { exchanges, planStep, shardings } from './plan';
