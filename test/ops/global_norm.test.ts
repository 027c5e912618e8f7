import { describeOp } from './describe_op';

describeOp('global_norm');
