export type { Communicator, Message } from './communicator';
export { broadcastText, evenParts, startsOf } from './communicator';
export type { LaunchedRank } from './launch';
export { deviceOfRank, launchedRank } from './launch';
export { localRanks } from './local';
export type { MpiOptions } from './mpi';
export { openMpi } from './mpi';
