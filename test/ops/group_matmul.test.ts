import { describeOp } from './describe_op';

describeOp('group_matmul');
