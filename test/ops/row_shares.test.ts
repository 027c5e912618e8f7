import { describeOp } from './describe_op';

describeOp('row_shares');
