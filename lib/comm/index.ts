export type { Communicator, Message } from './communicator';
export { broadcastText, countsOf, evenParts, gatherTexts, startsOf } from './communicator';
export type {
  DeviceArrays,
  DeviceCommunicator,
  DeviceCommunicatorOptions,
} from './device_communicator';
export { deviceCommunicator, openDeviceCommunicator } from './device_communicator';
export type { LaunchedRank } from './launch';
export { deviceOfRank, launchedRank } from './launch';
export { localRanks } from './local';
export type { LaunchedCommunicator, MpiOptions } from './mpi';
export type { DeviceMessage } from './transport';
export { openMpi } from './mpi';
