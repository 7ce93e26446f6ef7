"""What hosts have told: records kept once each, and how many they had to drop."""
