import { describeOp } from './describe_op';

describeOp('sum_rows');
