import { describeOp } from './describe_op';

describeOp('matmul');
