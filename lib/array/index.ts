export type { Device } from './device';
export { resolveDevice } from './device';
export type { HostArrayOf, RunInput } from './device_array';
export { DeviceArray } from './device_array';
export { moved } from './transfer';
export type { DType, HostArray, Spec } from '../native/spec';
export { bfloat16, float32, int32, uint8 } from '../native/spec';
