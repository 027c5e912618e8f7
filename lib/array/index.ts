export type { HostArrayOf, RunInput } from './device_array';
export { DeviceArray } from './device_array';
export { HostParts } from './host_parts';
export { moved } from './transfer';
export type { Device, ResolvedDevice } from '../native/device';
export { resolveDevice } from '../native/device';
export type { DType, HostArray, Spec } from '../native/spec';
export { bfloat16, float32, int32, uint8 } from '../native/spec';
